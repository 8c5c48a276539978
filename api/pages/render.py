"""The template environment: autoescaping always on, undefined names are errors, and the filters the templates use."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from api.pages import charts, figures, numbers
from api.pages.tokens import text_parts, token_views
from safe_sail import __version__

FOLDER = Path(str(files("api.pages")))
STATIC_FOLDER = FOLDER / "static"


@cache
def environment() -> Environment:
    """The one environment of the process; templates are compiled at first use."""
    env = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    env.globals.update(
        version=__version__,
        interval_figure=figures.interval_figure,
        axis_start=figures.axis_start,
        bar_of=figures.signed_bar,
        histogram_figure=figures.histogram_figure,
        text_parts=text_parts,
        token_views=token_views,
    )
    env.filters.update(
        score=numbers.score,
        bound=numbers.bound,
        share=numbers.share,
        count=numbers.count,
        number=numbers.number,
        p_value=numbers.p_value,
        moment=numbers.moment,
        heat=numbers.heat,
        tick=charts.number_tick,
        point=charts.point_text,
    )
    return env


def render(template: str, **values: object) -> str:
    """The page as text."""
    return environment().get_template(template).render(**values)
