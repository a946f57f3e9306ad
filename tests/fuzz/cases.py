"""How many cases each generated test of this folder tries: the one place to read the sum from."""

CASES = {
    "rules": 10000,
    "blend": 3000,
    "schedules": 5000,
    "edges": 1000,
    "trees": 200,
    "plan_text": 300,
    "plan_bytes": 250,
    "lock": 200,
    "edits": 200,
    "edits_round_trip": 200,
    "patch": 200,
    "wheel": 60,
    "recording": 30,
    "json_text": 300,
    "json_bytes": 200,
    "runs": 80,
}

LEAST = 20_000
