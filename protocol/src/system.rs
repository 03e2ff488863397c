//! The checked system description, as it travels in the boot archive.
