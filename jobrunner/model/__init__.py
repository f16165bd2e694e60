"""Floor 1: frozen dataclasses and enums. Values without behaviour; imports nothing but `errors`."""
