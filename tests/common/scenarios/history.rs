//! Histories and snapshots of memory that streams are at work on.

#[path = "../history_model.rs"]
pub(crate) mod history_model;

use plugalloc::observe::HistoryOptions;
use plugalloc::units::{Address, Bytes, KIB, MIB};

use super::Site;
use history_model::Model;

/// Blocks of many sizes live and go on several streams, some of them painted on others, at a limit
/// that makes memory move; the events lead to each snapshot on the way, and blocks of the end have
/// their colour.
pub(crate) fn events_lead_to_every_snapshot(site: &Site) {
    let options = HistoryOptions { max_entries: usize::MAX, ..HistoryOptions::default() };
    site.allocator.record_history(&options).unwrap();
    site.limit(192 * MIB);
    let streams: Vec<_> = (0..4).map(|_| site.stream()).collect();
    let mut live: Vec<(Address, Bytes, u8)> = Vec::new();
    let (mut model, mut random) = (Model::default(), 1_u64);
    let mut below = |end: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % end
    };
    for step in 0..1200_u64 {
        let bytes = [4 * KIB, 600 * KIB, 3 * MIB, 20 * MIB][below(4) as usize] / 4 * (1 + below(4));
        let (stream, other) = (streams[below(4) as usize], streams[below(4) as usize]);
        if live.len() < 24 && below(2) == 0 {
            let Ok(block) = site.allocator.allocate(site.id, bytes, stream) else {
                continue;
            };
            site.paint(block, bytes, step as u8, stream);
            live.push((block, bytes, step as u8));
        } else if !live.is_empty() {
            let (block, bytes, _) = live.swap_remove(below(live.len() as u64) as usize);
            if other != stream {
                // What is painted last there need not come after the first colour.
                site.paint(block, bytes, 0xff, other);
                site.allocator.record_stream(block, other).unwrap();
            }
            site.free(block);
        }
        if step % 60 == 59 {
            let snapshot = site.allocator.snapshot(None, true).unwrap();
            model.follow(&snapshot.device_traces[site.id.0 as usize]);
            model.assert_shows(&snapshot);
            let total: Bytes = snapshot.segments.iter().map(|segment| segment.total).sum();
            assert_eq!(total, site.reserved(), "what segments come to, after {step} steps");
        }
    }
    site.device().synchronize().unwrap();
    for (block, bytes, colour) in live {
        site.assert_painted((block, bytes), colour, streams[0], "a block that lived to the end");
        site.free(block);
    }
    site.allocator.stop_history().unwrap();
    streams.into_iter().for_each(|stream| site.end_stream(stream));
    site.finish();
}
