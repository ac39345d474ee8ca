"""Float graphs to int8, fp8 or int4: ranges by calibration, Q/DQ in the graphs, and what it costs."""
