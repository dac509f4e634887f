"""Passwords of users: kept as Argon2id hashes, of which each has its own salt and costs. Imports no torch."""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import TYPE_CHECKING

from core.errors import ConfigurationError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST, LONGEST = 8, 1000


class Passwords:
    """Hashes them and compares with hashes."""

    @cached_property
    def hasher(self) -> PasswordHasher:
        from argon2 import PasswordHasher

        return PasswordHasher()

    @cached_property
    def nobodys(self) -> str:
        """A hash for names that nobody has, so that they take as long as others."""
        return self.hasher.hash(secrets.token_hex(16))

    def hash(self, name: str, password: str) -> str:
        """Refused where the password of the user ``name`` would be too short, too long or the name."""
        if not SHORTEST <= len(password) <= LONGEST:
            raise ConfigurationError(
                f"The password has {len(password)} characters.", f"Choose {SHORTEST} to {LONGEST}."
            )
        if password.strip().lower() == name:
            raise ConfigurationError("The password is the name.", "Choose one that nobody guesses.")
        return self.hasher.hash(_bytes(password))

    def match(self, hashed: str, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return self.hasher.verify(hashed, _bytes(password[:LONGEST]))
        except (VerificationError, InvalidHashError):
            return False

    def anew(self, hashed: str, password: str) -> str | None:
        """Another hash of the same password where the costs have changed since."""
        return self.hasher.hash(_bytes(password)) if self.hasher.check_needs_rehash(hashed) else None


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "replace")
