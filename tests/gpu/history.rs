//! Histories and snapshots while streams are at work.

use crate::apart::on_one;
use crate::scenarios::{Kind, Site, history};

#[test]
fn events_lead_to_every_snapshot_of_handles() {
    on_one(module_path!(), "events_lead_to_every_snapshot_of_handles", |place| {
        history::events_lead_to_every_snapshot(&Site::new(place, Kind::Handles));
    });
}

#[test]
fn events_lead_to_every_snapshot_of_segments() {
    on_one(module_path!(), "events_lead_to_every_snapshot_of_segments", |place| {
        history::events_lead_to_every_snapshot(&Site::new(place, Kind::Segments));
    });
}
