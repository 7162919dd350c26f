"""Environment of the templates of all reports: everything is escaped, nothing may be undefined."""

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from kernelmem.auditing.report import formats, wording
from kernelmem.core.errors import printable

SHARED = "kernelmem.auditing.report"
FILTERS = {
    "count": formats.format_count,
    "number": formats.format_number,
    "signed": formats.format_signed,
    "share": formats.format_share,
    "points": formats.format_points,
    "interval": formats.format_interval,
    "share_interval": formats.format_share_interval,
    "ends": formats.format_ends,
    "percent": formats.format_percent,
    "sentence": wording.upper_first,
    "p_value": formats.format_p_value,
}


@cache
def page_environment(package: str = SHARED) -> Environment:
    """Return the environment of the templates of a package and of the shared ones, which are compiled once."""
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in dict.fromkeys((package, SHARED))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not the drawings, which are Markup
    )
    templates.filters.update(FILTERS)
    return templates
