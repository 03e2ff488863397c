//! Instruction emulation for accesses that hardware cannot finish: device registers and string I/O.
//!
//! Bytes become an [`decode::Instruction`], which [`execute::execute`] turns into register and bus effects; both are pure.
//! The subset is what compilers and kernels use on device memory. Anything else is reported, never guessed.

pub mod decode;
pub mod execute;
pub mod walk;
