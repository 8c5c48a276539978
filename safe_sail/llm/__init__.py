"""The door to language models behind OpenAI-compatible endpoints, for explainers and judges.

client.py asks; endpoint.py is the only caller of the SDK; budget.py, limits.py, cache.py and pricing.py keep money,
pace and answers; batch.py is the same by files instead of by calls.
"""
