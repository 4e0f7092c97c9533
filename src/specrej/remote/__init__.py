"""Services elsewhere, over HTTP."""
