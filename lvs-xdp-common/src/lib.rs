//! What a packet means to lvs-xdp.
#![no_std]
