//! Empty: exists so that cargo can follow this crate as a build dependency of `lvs-xdp`.
#![no_std]
