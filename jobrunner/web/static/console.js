/* What the console's pages do beyond links and forms. Without this file all of it works, by links and forms. */
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const main = () => byId("main");

  // --- times: of the browser's zone, and how long ago ----------------------------------------------------------------

  const pad = (number) => String(number).padStart(2, "0");

  function localTime(moment) {
    const day = `${moment.getFullYear()}-${pad(moment.getMonth() + 1)}-${pad(moment.getDate())}`;
    const time = `${pad(moment.getHours())}:${pad(moment.getMinutes())}:${pad(moment.getSeconds())}`;
    const parts = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(moment);
    const zone = parts.find((part) => part.type === "timeZoneName");
    return `${day} ${time} ${zone ? zone.value : ""}`.trim();
  }

  // The units of the server's own words, so that a time reads the same whoever has written it.
  const UNITS = [[2 * 86400, 86400, "d"], [2 * 3600, 3600, "h"], [120, 60, "min"], [1, 1, "s"]];

  function ageOf(moment, now) {
    const seconds = (moment - now) / 1000;
    const unit = UNITS.find(([least]) => Math.abs(seconds) >= least);
    if (!unit) return "now";
    const said = `${Math.floor(Math.abs(seconds) / unit[1])} ${unit[2]}`;
    return seconds > 0 ? `in ${said}` : `${said} ago`;
  }

  function tellTimes(within) {
    for (const each of within.querySelectorAll("time[data-local]")) {
      const moment = new Date(each.dateTime);
      if (Number.isNaN(moment.getTime())) continue;
      each.title = each.dateTime.replace("T", " ").replace(/\.\d+Z$|Z$/, " UTC");
      setText(each, localTime(moment));
    }
    tellAges(within);
  }

  function tellAges(within) {
    const now = Date.now();
    for (const each of within.querySelectorAll(".age[data-at]")) setText(each, ageOf(new Date(each.dataset.at), now));
  }

  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // --- live: the page is asked again when the server says that something has changed ---------------------------------

  const POLL_MS = 5000;
  let isBehind = false; // something has changed that the page does not show yet
  let tag = null; // the ETag of what is shown
  let polls = 0;

  const words = { live: "live", polls: "live, every 5 s", paused: "paused", lost: "lost", off: "not live" };

  function show(state) {
    const live = byId("live");
    if (!live || live.dataset.state === state) return;
    live.dataset.state = state;
    setText(live.querySelector(".word"), words[state]);
  }

  let connection = "off";

  function connected(state) {
    connection = state;
    show(state);
  }

  // A refresh would take from under somebody what they are busy with.
  function isBusy() {
    if (document.querySelector("dialog[open]")) return true;
    const selection = document.getSelection();
    if (selection && !selection.isCollapsed && main().contains(selection.anchorNode)) return true;
    const active = document.activeElement;
    if (active && main().contains(active) && active.matches("input, textarea, select")) return true;
    for (const each of main().querySelectorAll("input, textarea, select")) {
      if (each.type === "checkbox" || each.type === "radio") {
        if (each.checked !== each.defaultChecked) return true;
      } else if (each.tagName === "SELECT") {
        if ([...each.options].some((option) => option.selected !== option.defaultSelected) &&
            each.selectedIndex !== 0) return true;
      } else if (each.value !== each.defaultValue) return true;
    }
    return false;
  }

  let asking = false;

  async function refresh() {
    isBehind = true;
    if (document.hidden || asking || !main() || main().dataset.still !== undefined) return;
    if (isBusy()) {
      show("paused");
      return;
    }
    isBehind = false;
    asking = true;
    try {
      const headers = { "Jobrunner-Refresh": "true" };
      if (tag) headers["If-None-Match"] = tag;
      const response = await fetch(location.href, { headers, credentials: "same-origin" });
      if (response.status === 200 && !response.redirected) {
        const text = await response.text();
        if (isBusy()) {
          isBehind = true;
          show("paused");
          return;
        }
        tag = response.headers.get("ETag");
        await put(text);
      } else if (response.status !== 304) {
        show("lost"); // the login is over, or the database cannot be asked
        return;
      }
      show(connection);
    } catch {
      show("lost");
    } finally {
      asking = false;
      if (isBehind) setTimeout(catchUp, 50);
    }
  }

  async function put(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const found = fresh.getElementById("main");
    if (!found) return;
    tellTimes(found);
    const here = document.querySelector("#main tr.at, #main [data-row].at");
    const at = here && here.id;
    await htmx.swap({ text: found.outerHTML, target: main(), swap: "outerMorph", sourceElement: main() });
    if (at && byId(at)) byId(at).classList.add("at");
    tellTimes(main());
    document.title = fresh.title;
  }

  function catchUp() {
    if (!isBehind) return;
    if (isBusy()) show("paused");
    else refresh();
  }

  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  for (const event of ["selectionchange", "focusout", "change"]) {
    document.addEventListener(event, () => setTimeout(catchUp, 50));
  }

  function poll() {
    if (polls) return;
    connected("polls");
    polls = setInterval(refresh, POLL_MS);
  }

  function streams() {
    clearInterval(polls);
    polls = 0;
    connected("live");
  }

  // A proxy may keep a stream to itself, or cut it off: then the page asks by itself until the stream is back.
  function loses() {
    if (polls) return;
    connected("lost");
    setTimeout(() => connection === "lost" && poll(), 2 * POLL_MS);
  }

  document.addEventListener("htmx:sse:after:connection", streams);
  document.addEventListener("htmx:sse:error", loses);
  document.addEventListener("htmx:sse:close", () => connection === "live" && loses());
  document.addEventListener("changed", () => { streams(); refresh(); });
  document.addEventListener("lost", () => connected("lost"));
  document.addEventListener("htmx:after:request", (event) => {
    const ctx = event.detail && event.detail.ctx;
    if (!ctx || !ctx.sourceElement || ctx.sourceElement.id !== "live" || !ctx.response) return;
    if (ctx.response.status === 204) poll();
    else if (ctx.response.status >= 400) connected("lost");
  });

  // What was asked for by pressing something, and got no answer, is said: the dot alone is easily overlooked.
  for (const event of ["htmx:error", "htmx:response:error"]) {
    document.addEventListener(event, (raised) => {
      const ctx = raised.detail && raised.detail.ctx;
      const live = byId("live");
      if (!ctx || !ctx.sourceElement || ctx.sourceElement === live || (ctx.response && ctx.response.status < 500)) return;
      const said = document.createElement("p");
      said.textContent = "The server does not answer. What you pressed may not have been done; try again.";
      byId("said").replaceChildren(said);
    });
  }

  // --- dialogs: a form is shown over the page -------------------------------------------------------------------------

  document.addEventListener("htmx:after:swap", (event) => {
    const ctx = event.detail && event.detail.ctx;
    if (!ctx || !ctx.target || ctx.target.id !== "dialog-body") return;
    const dialog = byId("dialog");
    tellTimes(dialog);
    if (!dialog.open) dialog.showModal();
    const first = dialog.querySelector("[role=alert]") ? null : dialog.querySelector("input, select, textarea, button");
    if (first) first.focus();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#dialog [data-close], #dialog .back")) {
      event.preventDefault();
      byId("dialog").close();
    }
  });
  document.addEventListener("close", () => {
    byId("dialog-body").replaceChildren();
    catchUp();
  }, true);
  document.addEventListener("jobrunner-done", () => {
    byId("dialog").close();
    refresh();
  });

  // --- keys -----------------------------------------------------------------------------------------------------------

  let isGoing = 0;
  const rows = () => [...document.querySelectorAll("#main [data-row]")].filter((row) => row.offsetParent !== null);

  function step(by) {
    const all = rows();
    if (!all.length) return;
    const last = all.findIndex((row) => row.classList.contains("at"));
    const next = Math.min(Math.max(last + by, 0), all.length - 1);
    all.forEach((row, place) => row.classList.toggle("at", place === next));
    all[next].scrollIntoView({ block: "nearest" });
  }

  function open() {
    const row = document.querySelector("#main .at[data-row]");
    const link = row && row.querySelector("a[href]");
    if (link) link.click();
  }

  function search() {
    const box = document.querySelector("#main [data-search]") || byId("find");
    if (!box) return;
    box.focus();
    box.select();
  }

  const keys = {
    "/": search,
    "?": () => byId("help")?.showModal(),
    j: () => step(1),
    k: () => step(-1),
    Enter: open,
    t: () => changeTheme(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    const target = event.target;
    if (target.matches("input, textarea, select")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (event.key === "Enter" && target.matches("a, button, summary, [tabindex]:not(main)")) return;
    if (Date.now() - isGoing < 1500) {
      isGoing = 0;
      const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
      if (link) {
        event.preventDefault();
        link.click();
        return;
      }
    }
    if (event.key === "g") {
      isGoing = Date.now();
    } else if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });

  // --- light or dark, copying -----------------------------------------------------------------------------------------

  function changeTheme() {
    const root = document.documentElement;
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    const path = new URL(document.body.dataset.base, location.href).pathname;
    document.cookie = `jobrunner_theme=${root.dataset.theme}; path=${path}; max-age=31536000; SameSite=Strict`;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = byId(button.dataset.copy).textContent;
    const select = () => document.getSelection().selectAllChildren(byId(button.dataset.copy));
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => setText(button, "Copied"), select);
    else select(); // without HTTPS there is no clipboard: it is selected, to be copied by hand
  });

  // htmx may look at the page before its extension is there, and does not look again: so the stream is asked for here.
  function connect() {
    const live = byId("live");
    if (!live || !live.dataset.stream) return;
    live.setAttribute("hx-sse:connect", live.dataset.stream);
    htmx.process(live);
  }

  document.addEventListener("DOMContentLoaded", () => {
    tellTimes(document);
    setTimeout(connect, 0);
    setInterval(() => tellAges(document), 5000);
    for (const each of document.querySelectorAll("[data-copy], #theme, #keys")) each.hidden = false;
    byId("theme")?.addEventListener("click", changeTheme);
    byId("keys")?.addEventListener("click", () => byId("help").showModal());
  });
})();
