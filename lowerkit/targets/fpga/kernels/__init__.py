"""Kernels: functions that write a layer in the integer language, with the bound of what it computes."""
