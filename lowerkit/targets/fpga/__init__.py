"""The fpga target: integer kernels, written once, that print to HLS C++ and are simulated bit for bit."""
