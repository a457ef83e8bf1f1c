//! The operator's command, on real servers.

mod check;
mod dead_letters;
mod deletes;
mod load;
mod sources;
mod sources_file;
mod takeover;
mod trace;
mod up;
