//! Where a process may die: before each write of a shared word. A debug build of the host tells somebody who asks, so
//! that tests can have it die at each of them; any other build has nothing of it.

#[cfg(debug_assertions)]
use core::{
    mem::transmute,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

#[cfg(debug_assertions)]
static HOOK: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Has a function called at each such point, by the thread that is there.
#[cfg(debug_assertions)]
pub fn watch(hook: fn()) {
    HOOK.store(hook as *mut (), Ordering::Release);
}

/// This is such a point.
#[inline(always)]
pub fn point() {
    #[cfg(debug_assertions)]
    {
        let hook = HOOK.load(Ordering::Acquire);
        if !hook.is_null() {
            // SAFETY: what is not null was a function of this type, in `watch`.
            unsafe { transmute::<*mut (), fn()>(hook)() };
        }
    }
}
