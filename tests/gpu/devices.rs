//! An allocator over two GPUs.

use std::sync::Arc;
use std::thread;

use plugalloc::device::Device;
use plugalloc::units::{DeviceId, MIB};

use crate::brush::place;
use crate::contexts::{current, with_primary_context_of};
use crate::peers::pair;
use crate::scenarios::peers::peer_scenarios;
use crate::scenarios::{Kind, Site, sites};

macro_rules! on_two_gpus {
    ($($scenario:ident,)*) => {
        mod handles {
            $(
                #[test]
                fn $scenario() {
                    crate::apart::on_two(module_path!(), stringify!($scenario), |places| {
                        crate::scenarios::peers::$scenario(places, super::Kind::Handles);
                    });
                }
            )*
        }

        mod segments {
            $(
                #[test]
                fn $scenario() {
                    crate::apart::on_two(module_path!(), stringify!($scenario), |places| {
                        crate::scenarios::peers::$scenario(places, super::Kind::Segments);
                    });
                }
            )*
        }
    };
}
peer_scenarios!(on_two_gpus);

/// Makes calls of many kinds for both devices, while what is current stays so.
fn use_both(sites: &[Site]) {
    let before = current();
    for (site, other) in [(&sites[0], &sites[1]), (&sites[1], &sites[0])] {
        site.device().enable_peer_access(other.device().id()).unwrap();
        let (stream, theirs) = (site.stream(), other.stream());
        let at = site.allocate(30 * MIB, stream);
        assert_eq!(current(), before, "after an allocation on {}", site.id);
        site.paint(at, 30 * MIB, 5, stream);
        site.assert_painted((at, 30 * MIB), 5, stream, "a block");
        site.allocator.record_stream(at, theirs).unwrap();
        site.free(at);
        assert_eq!(current(), before, "after a free on {}", site.id);
        site.allocator.process_events().unwrap();
        site.allocator.allocate(DeviceId(7), MIB, stream).unwrap_err();
        site.allocator.empty_cache().unwrap();
        assert_eq!(current(), before, "after the cache was emptied");
        site.end_stream(stream);
        other.end_stream(theirs);
        assert_eq!(current(), before);
    }
}

#[test]
fn the_current_device_of_the_caller_stays_current() {
    let Some((gpu, peer)) = pair() else { return };
    let places = [place(&gpu.device), place(&peer)];
    for kind in [Kind::Handles, Kind::Segments] {
        let sites = sites(&places, kind);
        for ordinal in [0, 1] {
            with_primary_context_of(ordinal, |_| use_both(&sites));
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(current().is_null());
                use_both(&sites);
                assert!(current().is_null());
            });
        });
        sites.iter().for_each(Site::finish);
    }
}

#[test]
fn a_stream_belongs_to_the_device_that_made_it() {
    let Some((gpu, peer)) = pair() else { return };
    let devices = [Arc::clone(&gpu.device), peer];
    let streams = [0, 1].map(|index| devices[index].stream_create().unwrap());
    for (index, device) in devices.iter().enumerate() {
        for default in [0, 1, 2].map(plugalloc::StreamId) {
            assert!(device.has_stream(default).unwrap());
        }
        let found = streams.map(|stream| device.has_stream(stream).unwrap());
        assert_eq!(found, [index == 0, index == 1], "whether {} has them", device.id());
    }
    for (device, stream) in devices.iter().zip(streams) {
        device.stream_destroy(stream).unwrap();
    }
}
