"""What the Account page shows, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.ui.components import escape as e
from core.access import LOCAL, MEANS, Actor

if TYPE_CHECKING:
    from storage.queries.users import TokenRow, UserRow

LEAVE = '<form method="post" action="/logout"><button class="leave">Sign out</button></form>'


def who(actor: Actor) -> str:
    """Who is signed in, and what they may do."""
    if actor == LOCAL:
        return (
            "<h3>This studio has no users</h3><p>It serves this machine alone and asks nobody. From the first user on "
            "everybody signs in, on this machine too, and it can be served to others.</p>"
        )
    return (
        f'<div class="titled"><h2>{e(actor.name)} <em class="tag">{e(actor.role)}</em></h2>{LEAVE}</div>'
        f"<p>{'An' if actor.role == 'admin' else 'A'} {e(actor.role)} {e(MEANS[actor.role])}.</p>"
    )


def roles() -> str:
    """What each role may do."""
    return "".join(f"<p><b>{role}</b> {e(does)}.</p>" for role, does in MEANS.items())


def users(rows: Sequence[UserRow]) -> str:
    lines = "".join(
        f"<tr><th>{e(row.name)}</th><td>{e(row.role)}</td><td>{_day(row.created)}</td><td>{_day(row.seen)}</td>"
        f"<td>{'shut out' if row.disabled else 'may sign in'}</td></tr>"
        for row in rows
    )
    return _table(("name", "role", "since", "last sign-in", "state"), lines)


def tokens(rows: Sequence[TokenRow]) -> str:
    if not rows:
        return "<p>No tokens yet.</p>"
    lines = "".join(
        f'<tr><td class="num">{row.id}</td><td class="wrap">{e(row.label)}</td><td>{_day(row.created)}</td>'
        f"<td>{_day(row.used)}</td><td>{_end(row.expires)}</td></tr>"
        for row in rows
    )
    return _table(("number", "label", "made", "last used", "ends"), lines)


def key(text: str) -> str:
    """A new token, the only time that it is seen."""
    return (
        '<div class="note"><p>This is the token. It is not kept and not shown again: copy it now.</p>'
        f'<p><code class="key">{e(text)}</code></p></div>'
    )


def done(text: str) -> str:
    return f'<div class="note" role="status">{e(text)}</div>'


def _table(heads: Sequence[str], lines: str) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _day(at: datetime | None) -> str:
    return "–" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M}"


def _end(at: datetime | None) -> str:
    if at is None:
        return "never"
    return "expired" if at <= datetime.now(UTC) else f"{at.astimezone():%Y-%m-%d}"
