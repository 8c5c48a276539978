"""Feature databases of other tools in and out; one file a format, each streamed through the caller's transaction.

- `safe_sail_json`: the one JSON object of the published Safe-SAIL database.
- `neuronpedia`: Neuronpedia's batches of JSON lines.
- `parquet`: one Parquet file a table, whole and lossless.
- `delphi`: a folder of explanations and scores, one file a latent.
- `reading`: an SAE's features from the store, page by page, for every writer.
- `files`: what all share: staged writing, bounded reading, errors that name the place.
"""
