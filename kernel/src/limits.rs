//! Every bound of the kernel and why it is what it is.

/// Cores the kernel can drive; each costs 4 KiB of ready queues in the image.
pub const MAX_CORES: usize = 8;
/// ASID pools; a pool holds 512 spaces, so 4096 spaces in all (12 bits in a capability).
pub const ASID_POOLS: usize = 8;
/// Spaces of one pool: one page of 8-byte entries.
pub const ASID_POOL_ENTRIES: usize = 512;
/// Interrupt lines by number: 16 unused, then one per user vector 0..=107 (ABI section 7).
pub const IRQ_LINES: usize = 124;
/// First interrupt number of a user vector.
pub const FIRST_USER_IRQ: u32 = 16;
/// CPU vector of user vector 0.
pub const FIRST_USER_CPU_VECTOR: u8 = 48;
/// CPU vector of the per-core timer.
pub const TIMER_VECTOR: u8 = 157;
/// CPU vector of the reschedule interrupt between cores.
pub const RESCHEDULE_VECTOR: u8 = 158;
/// CPU vector of the stall/shootdown interrupt between cores.
pub const STALL_VECTOR: u8 = 159;
/// Priorities, one ready queue each per core.
pub const PRIORITIES: usize = 256;
/// Largest XSAVE area that fits behind a TCB's fields (x87, SSE and AVX state).
pub const FPU_BYTES: usize = 832;
/// Least budget and period in microseconds: twice a generous worst-case kernel path of 10 us (ABI section 9).
pub const MIN_BUDGET_US: u64 = 20;
/// Time a thread must have left to be let in, in microseconds: one kernel path there and back.
pub const KERNEL_WCET_US: u64 = 10;
/// Longest period in microseconds: keeps tick sums far from wrapping (one hour).
pub const MAX_PERIOD_US: u64 = 3_600_000_000;
/// Time slice of the initial thread in microseconds.
pub const BOOT_TIME_SLICE_US: u64 = 5_000;
/// Bytes cleared between two preemption points of an untyped's reset or of FrameZero.
pub const CLEAR_CHUNK_BYTES: u64 = 4096;
/// Capabilities deleted between two looks at the clock.
pub const WORK_UNITS_PER_PREEMPTION: u32 = 32;
