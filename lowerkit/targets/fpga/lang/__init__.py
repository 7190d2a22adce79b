"""The integer kernel language: expressions with proven ranges, loops, an interpreter and printers."""
