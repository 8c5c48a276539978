"""The checks that settings run on themselves."""

from safe_sail.errors import BadSettings


def at_least(settings: object, least: int, *names: str) -> None:
    """Raises `BadSettings` where a named setting is below the least value."""
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise BadSettings(f"{type(settings).__name__}.{name} must be at least {least}; got {value}.")


def within(settings: object, least: int, most: int, *names: str) -> None:
    """Raises `BadSettings` where a named setting is outside the two values, which belong to the range."""
    for name in names:
        value = getattr(settings, name)
        if not least <= value <= most:
            raise BadSettings(f"{type(settings).__name__}.{name} lies within {least} and {most}; got {value}.")
