#![no_std]
#![no_main]
//! Kernel programs.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
