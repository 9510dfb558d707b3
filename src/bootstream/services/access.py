"""Who may call what: a dependency of every route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from bootstream.services.tokens import ANYBODY, Token, Tokens

_BEARER = HTTPBearer(auto_error=False, description="A token of the service's file.")


def needs(scope: str) -> Callable[..., Awaitable[Token]]:
    """Return a dependency that lets tokens with ``scope`` through; raises the two refusals."""

    async def check(
        request: Request,
        _credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> Token:
        tokens: Tokens | None = request.app.state.tokens
        token = ANYBODY
        if tokens is not None:
            token = tokens.check(request.headers.get("authorization"), scope)
        request.state.token = token.name
        return token

    return check
