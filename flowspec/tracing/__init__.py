"""What a request did, node by node, on one time line: records, spans, files, figures."""
