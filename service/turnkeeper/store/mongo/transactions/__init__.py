"""Transactions run to a known outcome: grouped, retried, and outliving their callers. No documents of sessions here."""
