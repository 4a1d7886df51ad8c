//! The rules that give packets marks, and what a change of them must be like.

use ipnet::{IpNet, Ipv6Net};

use super::invalid;
use crate::api::types::{ApiError, ErrorCode, MarkRule};

/// Adds a rule behind the others.
///
/// # Errors
///
/// It makes no sense, or is there already.
pub(super) fn add(rules: &mut Vec<MarkRule>, rule: &MarkRule) -> Result<(), ApiError> {
    let rule = checked(rule)?;
    if rules.contains(&rule) {
        return Err(ApiError::new(
            ErrorCode::MarkExists,
            format!("this rule of mark {} exists already: nothing to add", rule.mark),
        ));
    }
    rules.push(rule);
    Ok(())
}

/// Deletes a rule.
///
/// # Errors
///
/// It makes no sense, or is not there.
pub(super) fn delete(rules: &mut Vec<MarkRule>, rule: &MarkRule) -> Result<(), ApiError> {
    let rule = checked(rule)?;
    let position = rules.iter().position(|other| *other == rule).ok_or_else(|| {
        ApiError::new(
            ErrorCode::NoSuchMark,
            format!(
                "there is no such rule of mark {}: list the rules to see which there are",
                rule.mark
            ),
        )
    })?;
    rules.remove(position);
    Ok(())
}

/// Refuses what stands for no mark.
pub(super) fn check_mark(mark: u32) -> Result<(), ApiError> {
    if mark == 0 {
        return Err(invalid(
            "mark 0 is what packets without a mark have: use a mark from 1 to 4294967295".to_owned(),
        ));
    }
    Ok(())
}

fn checked(rule: &MarkRule) -> Result<MarkRule, ApiError> {
    check_mark(rule.mark)?;
    if rule.addresses.is_empty() {
        return Err(invalid(format!(
            "a rule of mark {} has no address: name a prefix such as 192.168.2.100/32",
            rule.mark
        )));
    }
    for net in &rule.addresses {
        if let IpNet::V6(net) = net
            && is_mapped(net)
        {
            return Err(invalid(format!(
                "{net} is IPv4 in the form of IPv6: write it as IPv4"
            )));
        }
    }
    Ok(rule.normal())
}

fn is_mapped(net: &Ipv6Net) -> bool {
    net.prefix_len() >= 96 && net.addr().to_ipv4_mapped().is_some()
}
