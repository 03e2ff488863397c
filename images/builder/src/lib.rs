//! From a system description to a boot image.
