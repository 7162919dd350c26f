"""Text of counts, shares, intervals and p-values, in the report and in the terminal."""

import math

from kernelmem.statistics import Interval

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"


def format_count(value: int) -> str:
    """Format a whole number with thousands separators.

    Example:
        >>> format_count(12345)
        '12,345'
    """
    return f"{value:,}".replace("-", MINUS)


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number with ``digits`` significant digits.

    Example:
        >>> [format_number(v) for v in (0.0, 12.0, -0.12345, 1234.5, 0.00001234, None)]
        ['0', '12', '−0.123', '1,234', '1.23 × 10⁻⁵', '–']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", MINUS)
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding: 9.996 has exponent 1
    if not -4 < exponent < 7:
        superscript = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value / 10.0**exponent:.{digits - 1}f} × 10{superscript}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def format_signed(value: float | None) -> str:
    """Format a number with its sign.

    Example:
        >>> format_signed(0.5), format_signed(-0.5)
        ('+0.500', '−0.500')
    """
    return ("+" if value is not None and value > 0 else "") + format_number(value)


def format_share(value: float | None) -> str:
    """Format a share as a percentage; 100% and 0% appear only if exact.

    Example:
        >>> [format_share(v) for v in (1.0, 0.99996, 0.9125, 0.0, 1e-9, -0.021, None)]
        ['100%', '99.996%', '91.3%', '0%', '<0.001%', '−2.1%', '–']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size in (0, 1) or size > 1:
        text = f"{100 * size:.4g}%"
    elif not 5e-6 <= size < 1 - 5e-6:
        text = "<0.001%" if size < 0.5 else ">99.999%"
    else:
        digits = next((d for d in range(1, 4) if 0 < round(100 * size, d) < 100), 3)
        text = f"{math.floor(100 * size * 10**digits + 0.5) / 10**digits:.{digits}f}%"
    return (MINUS if value < 0 else "") + text


def format_points(value: float | None) -> str:
    """Format a difference of two shares in percentage points, with its sign.

    Example:
        >>> format_points(0.314), format_points(-0.02), format_points(None)
        ('+31.4 points', '−2.0 points', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:+.1f} points".replace("-", MINUS)


def format_interval(interval: Interval | None, digits: int = 3) -> str:
    """Format an estimate with its interval, each with ``digits`` significant digits.

    Example:
        >>> format_interval(Interval(0.64123, 0.612, 0.669, 0.95))
        '0.641 (0.612 to 0.669)'
    """
    if interval is None:
        return MISSING
    value, low, high = (format_number(end, digits) for end in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def format_share_interval(interval: Interval | None) -> str:
    """Format a share with its interval as percentages.

    Example:
        >>> format_share_interval(Interval(0.152, 0.121, 0.189, 0.95))
        '15.2% (12.1% to 18.9%)'
    """
    if interval is None:
        return MISSING
    return f"{format_share(interval.value)} ({format_share(interval.low)} to {format_share(interval.high)})"


def format_ends(interval: Interval) -> str:
    """Format the ends of the interval of a difference of two shares, in percentage points.

    Example:
        >>> format_ends(Interval(0.314, 0.2, 0.43, 0.95))
        '+20.0 to +43.0'
    """
    low, high = (format_points(end).removesuffix(" points") for end in (interval.low, interval.high))
    return f"{low} to {high}"


def format_percent(value: float) -> str:
    """Format a chosen share, such as a level, as a percentage.

    Example:
        >>> format_percent(0.95), format_percent(0.1), format_percent(0.001)
        ('95%', '10%', '0.1%')
    """
    return f"{round(100 * value, 9):g}%"


def format_plus_minus(value: float, error: float, *, percent: bool = False) -> str:
    """Format a value with its standard error, to the digits that the error leaves.

    Example:
        >>> format_plus_minus(0.9983, 0.0011), format_plus_minus(0.965, 0.009, percent=True), format_plus_minus(-3.0, 0.0)
        ('0.9983 ± 0.0011', '96.5% ± 0.9%', '−3 ± 0')
    """
    scale, unit = (100, "%") if percent else (1, "")
    value, error = scale * value, scale * error
    if not math.isfinite(value):
        return MISSING
    if not error > 0:
        return f"{format_number(value)}{unit} ± {format_number(error)}{unit}"
    # One digit of the error, two where it starts with 1 or 2; one decimal of a percentage
    exponent = math.floor(math.log10(error))
    decimals = min(6, max(0, (error < 3 * 10.0**exponent) - exponent))
    if percent and error >= 0.1:
        decimals = 1
    return f"{value:,.{decimals}f}{unit} ± {error:.{decimals}f}{unit}".replace("-", MINUS)


def format_p_value(value: float | None) -> str:
    """Format a p-value with its relation, cut at 0.001.

    Example:
        >>> format_p_value(1e-12), format_p_value(0.0312), format_p_value(0.41), format_p_value(1.0), format_p_value(None)
        ('< 0.001', '= 0.031', '= 0.41', '= 1', '–')
    """
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"= {format_number(value, 2)}"


def format_list(words: list[str]) -> str:
    """Join words with commas and "and".

    Example:
        >>> format_list(["a"]), format_list(["a", "b"]), format_list(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
