"""Making a plan: record the uncached run, search the schedule, fit the weights, refine them in closed loop."""
