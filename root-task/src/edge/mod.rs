//! The edge: carries out what the library decides, by kernel calls. Only in the image.

pub mod archive;
pub mod cmos;
pub mod disks;
pub mod host;
pub mod objects;
pub mod pci;
pub mod serial;
pub mod servers;
pub mod window;
