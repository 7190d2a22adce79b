"""Operators that lowerkit emits itself, as tensor expressions: one idea per file."""
