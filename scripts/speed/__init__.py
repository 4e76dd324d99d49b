"""What the loop costs: floating point operations counted at full size, and times of the embedded model."""
