"""Kernels as RTL: printed as DSLX and Verilog, simulated, placed and routed by open tools."""
