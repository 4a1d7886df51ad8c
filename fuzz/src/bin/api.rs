//! What libFuzzer calls with each input.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| lvs_xdp_fuzz::api::run(input));
