"""Pages of lists: the `Link` header with the address of the next page; lists ordered by slug, and by strength."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Query, Request, Response

from db.store import KeptLink
from db.store.cursors import LinkPlace, read_link_place, read_place, write_link_place, write_place

T = TypeVar("T")
Cursor = Annotated[
    str | None, Query(max_length=800, description="`next_cursor` of the page before, with the same filters.")
]


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Adds the header where there is a next page."""
    if cursor is not None:
        given = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query = urlencode([*((name, value) for name, value in given if name != "cursor"), ("cursor", cursor)])
        response.headers["Link"] = f'<{quote(request.scope["path"])}?{query}>; rel="next"'


def page_of(
    name: str,
    find: Callable[[str | None, int], Sequence[T]],
    slug_of: Callable[[T], str],
    cursor: str | None,
    limit: int,
) -> tuple[Sequence[T], str | None]:
    """A page of the list of this name and the next page's cursor; `find` gives so many rows behind a slug.

    Raises:
        BadInput: the cursor is not one of this list.
    """
    after = None if cursor is None else read_place(name, cursor, 1)[0]
    found = find(after, limit + 1)
    return found[:limit], write_place(name, slug_of(found[limit - 1])) if len(found) > limit else None


def page_of_links(
    name: str, find: Callable[[LinkPlace | None, int], Sequence[KeptLink]], cursor: str | None, limit: int
) -> tuple[Sequence[KeptLink], str | None]:
    """The same for links, which are ordered by strength.

    Raises:
        BadInput: the cursor is not one of this list.
    """
    found = find(None if cursor is None else read_link_place(name, cursor), limit + 1)
    if len(found) <= limit:
        return found, None
    last = found[limit - 1]
    return found[:limit], write_link_place(name, LinkPlace(last.link.strength, last.study, last.place))


def listed(request: Request, response: Response, items: list[Any], cursor: str | None) -> dict[str, Any]:
    """The answer of a list, with its `Link` header."""
    link_next(request, response, cursor)
    return {"items": items, "next_cursor": cursor}
