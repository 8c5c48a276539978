"""The `Link` header of a page of a list: the address of the next page, with the same filters and order."""

from fastapi import Request, Response


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Adds the header where there is a next page."""
    if cursor is not None:
        following = request.url.include_query_params(cursor=cursor).components
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
