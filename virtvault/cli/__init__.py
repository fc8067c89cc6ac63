"""The command line: ``virtvault``, thin over :class:`virtvault.client.Client`."""
