"""What every system shares: ledger, errors, HTTP, watching, requests, receipts."""
