"""What a fit, a forecast and the state cost, beside `hicache-pp` and inside cache-dit."""
