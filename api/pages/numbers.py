"""Numbers as people read them: a fixed number of decimals in a column, no digits that the data do not carry."""

import math
from datetime import UTC, datetime

MINUS = "\u2212"
NARROW_SPACE = "\u202f"


def score(value: float) -> str:
    """A score near [0, 1] with two decimals; just below one it gets a third, so that it does not read as perfect."""
    size = abs(value)
    if 0.9995 <= size < 1:
        return ">0.999" if value > 0 else f"<{MINUS}0.999"
    return _minus(f"{_no_negative_zero(value):.{3 if 0.995 <= size < 1 else 2}f}")


def bound(value: float) -> str:
    """End of an interval, with two decimals."""
    return _minus(f"{_no_negative_zero(value):.2f}")


def share(value: float) -> str:
    """A share of one as per cent, with two significant digits below ten per cent; below zero with its sign."""
    percent = abs(100 * value)
    if percent == 0:
        text = "0"
    elif percent < 0.01:
        text = "<0.01"
    elif percent < 1:
        text = f"{percent:.2f}"
    elif 99.95 <= percent < 100:
        text = ">99.9"  # not perfect, and must not read so
    elif percent < 10 or 99.5 <= percent < 100:
        text = f"{percent:.1f}"
    else:
        text = f"{percent:.0f}"
    return f"{MINUS if value < 0 else ''}{text}{NARROW_SPACE}%"


def count(value: int) -> str:
    """A whole number with thousands apart."""
    return f"{value:,}".replace(",", NARROW_SPACE if abs(value) >= 10_000 else "")


def number(value: float) -> str:
    """Any number with three significant digits; very large and very small ones in powers of ten."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 6:
        decimals = min(max(2 - size, 0), 5)
        text = f"{value:.{decimals}f}"
        return _minus(text) if size < 3 else _minus(count(round(value)))
    return _minus(f"{value:.1e}")


def p_value(value: float) -> str:
    """A p- or q-value: three decimals, and `<0.001` below."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def moment(value: datetime) -> str:
    """A time to the minute, in UTC."""
    return f"{value.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def heat(value: float) -> int:
    """Step 0 to 10 of a colour scale for a value in [0, 1]; values outside are cut."""
    return round(10 * min(max(value, 0.0), 1.0))


def _no_negative_zero(value: float) -> float:
    return 0.0 if abs(value) < 0.005 else value


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
