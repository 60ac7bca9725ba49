//! Two GPUs that reach each other.

use std::sync::Arc;

use plugalloc::config::Config;
use plugalloc::device::cuda::{CudaDevice, CudaMachine};
use plugalloc::device::{Device, HandleId};
use plugalloc::units::{Address, Bytes, MIB, StreamId};
use plugalloc::{Allocator, DeviceId};

use crate::apart::apart;
use crate::conformance::{self, read, write};
use crate::scenarios::skip;
use crate::{Gpu, Numbers, gpu};

/// The first GPU and a second one that it can reach, or `None` with a printed reason.
pub(crate) fn pair() -> Option<(Gpu, Arc<CudaDevice>)> {
    let gpu = gpu()?;
    let machine = CudaMachine::open().unwrap();
    let Some(peer) = machine.devices().get(1) else {
        skip("this machine has one GPU only");
        return None;
    };
    if !gpu.device.can_access_peer(peer.id()).unwrap() {
        skip(&format!("{} cannot reach {}", gpu.device.id(), peer.id()));
        return None;
    }
    Some((gpu, Arc::clone(peer)))
}

fn mapped(device: &dyn Device, bytes: Bytes) -> (Address, HandleId) {
    let at = device.reserve(bytes).unwrap();
    let handle = device.create(bytes).unwrap();
    device.map(at, bytes, handle).unwrap();
    device.set_access(at, bytes).unwrap();
    (at, handle)
}

#[test]
fn plain_memory_of_a_peer_can_be_copied() {
    let Some((gpu, peer)) = pair() else { return };
    apart(module_path!(), "plain_memory_of_a_peer_can_be_copied", || {
        conformance::peers_copy_between_each_other(&*gpu.device, &*peer);
        conformance::peers_copy_between_each_other(&*peer, &*gpu.device);
    });
}

#[test]
fn mapped_memory_of_a_peer_is_reached_whether_mapped_before_or_later() {
    let test = "mapped_memory_of_a_peer_is_reached_whether_mapped_before_or_later";
    let Some((gpu, peer)) = pair() else { return };
    apart(module_path!(), test, || reach_mapped_memory(&gpu, &peer));
}

fn reach_mapped_memory(gpu: &Gpu, peer: &CudaDevice) {
    let bytes = 4 * MIB;
    let before = mapped(peer, bytes);
    gpu.device.enable_peer_access(peer.id()).unwrap();
    let later = mapped(peer, bytes);
    for (at, handle) in [before, later] {
        write(peer, at, b"written there");
        assert_eq!(read(&*gpu.device, at, 13), b"written there");
        // The filling runs on this device, so the memory is written through its own mapping.
        gpu.device.fill_async(at, 77, bytes, StreamId::DEFAULT).unwrap();
        gpu.device.stream_synchronize(StreamId::DEFAULT).unwrap();
        assert_eq!(read(peer, at + bytes - 2, 2), [77, 77]);
        peer.unmap(at, bytes).unwrap();
        peer.release(handle).unwrap();
        peer.free_address(at, bytes).unwrap();
    }
}

#[test]
fn a_device_is_no_peer_of_itself() {
    let Some(gpu) = gpu() else { return };
    let own = gpu.device.id();
    assert!(!gpu.device.can_access_peer(own).unwrap());
    assert!(gpu.device.enable_peer_access(own).is_err());
    assert!(gpu.device.can_access_peer(DeviceId(99)).is_err());
    assert!(gpu.device.can_access_peer(DeviceId(-1)).is_err());
}

#[test]
fn one_allocator_serves_two_devices() {
    let Some((gpu, peer)) = pair() else { return };
    apart(module_path!(), "one_allocator_serves_two_devices", || serve_both(&gpu, peer));
}

fn serve_both(gpu: &Gpu, peer: Arc<CudaDevice>) {
    gpu.device.enable_peer_access(peer.id()).unwrap();
    let devices = [Arc::clone(&gpu.device), peer];
    let allocator = Allocator::new(
        devices.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect(),
        Config::default(),
    )
    .unwrap();
    let mut numbers = Numbers::new(9);
    for value in 0..60u8 {
        let bytes = numbers.size().min(32 * MIB);
        let here = allocator.allocate(DeviceId(0), bytes, StreamId::DEFAULT).unwrap();
        let there = allocator.allocate(DeviceId(1), bytes, StreamId::DEFAULT).unwrap();
        devices[1].fill_async(there, value, bytes, StreamId::DEFAULT).unwrap();
        devices[1].stream_synchronize(StreamId::DEFAULT).unwrap();
        // SAFETY: the memory stays there, and nobody else uses it, until the copy has run.
        unsafe { gpu.device.copy_async(here, there, bytes, StreamId::DEFAULT) }.unwrap();
        gpu.assert_filled(here, bytes, value, StreamId::DEFAULT);
        assert_eq!(allocator.block(there).unwrap().device, DeviceId(1));
        allocator.free(here).unwrap();
        allocator.free(there).unwrap();
    }
    allocator.is_quiescent().unwrap();
}
