"""Awkward files, made by code: every case with what must become of it."""

from tests.input.awkward import binaries, encodings, folders, objects, tables

CASES = [*encodings.CASES, *tables.CASES, *objects.CASES, *binaries.CASES, *folders.CASES]
