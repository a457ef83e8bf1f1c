//! Clock to POST /ingest/adsbdb.
