"""Functions of login.v1.Login by which users and admins see and end sessions.

An ended session gives no further tokens, and the access tokens that it gave are revoked.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from login.v1 import login_pb2 as pb
from sqlalchemy import ColumnElement, delete, select

from mesh import Context, PermissionDenied, Unauthenticated
from services.login import revocations
from services.login.tables import sessions

__all__ = ["current_session", "end_session", "end_sessions", "end_where", "list_sessions"]

ADMIN = "admin"


async def list_sessions(request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
    """Return the sessions of a user, the newest first."""
    user_id = _allowed(request.user_id, context)
    async with context.transaction() as tx:
        rows = (
            await tx.execute(
                select(sessions).where(sessions.c.user_id == user_id).order_by(sessions.c.created_at.desc())
            )
        ).all()
    current = current_session(context)
    response = pb.ListSessionsResponse()
    for row in rows:
        session = response.sessions.add(id=row.id, current=row.id == current)
        session.create_time.FromSeconds(row.created_at)
        session.expire_time.FromSeconds(row.expires_at)
    return response


async def end_session(request: pb.EndSessionRequest, context: Context) -> Empty:
    """End a session."""
    which = [sessions.c.id == request.id]
    if context.identity is not None and ADMIN not in context.identity.roles:
        which.append(sessions.c.user_id == context.identity.subject)
    await end_where(context, *which)
    return Empty()


async def end_sessions(request: pb.EndSessionsRequest, context: Context) -> Empty:
    """End all sessions of a user."""
    user_id = _allowed(request.user_id, context)
    ended = await end_where(context, sessions.c.user_id == user_id)
    by = context.identity.subject if context.identity else context.caller
    context.log.info("%d sessions of user %s were ended by %s", ended, user_id, by)
    return Empty()


async def end_where(context: Context, *which: ColumnElement[bool]) -> int:
    """End the sessions for which the conditions hold, revoke their tokens, and return how many there were."""
    async with revocations.announced(context) as tx:
        ended = (await tx.execute(delete(sessions).where(*which).returning(sessions.c.id))).scalars().all()
        await revocations.revoke_sessions(tx, context, ended)
    return len(ended)


def current_session(context: Context) -> str | None:
    """Return the id of the session of the request's access token; None for a token of another issuer."""
    session_id = context.identity.claims.get("sid") if context.identity else None
    return session_id if isinstance(session_id, str) else None


def _allowed(user_id: str, context: Context) -> str:
    """Return the id of the user whose sessions the caller may see and end."""
    identity = context.identity
    if identity is None:  # a service of the mesh, which the contract lets call
        if not user_id:
            raise Unauthenticated("one's own sessions need a user: send `authorization: Bearer TOKEN`")
        return user_id
    if user_id and user_id != identity.subject and ADMIN not in identity.roles:
        raise PermissionDenied("these are not your sessions")
    return user_id or identity.subject
