//! Topic to MongoDB: every record stored, superseded, dead-lettered or skipped, and counted.
