"""The store: where records are kept, in SQLite or PostgreSQL.

Order of reading: `engine` (connections and transactions), `tables`, `store` (records to rows and back), `search`,
`migrate`. The library knows nothing of this folder; commands and the service stand on it.
"""
