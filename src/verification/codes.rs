//! Every documented code with its HTTP status and a message in the provider's manner.
//!
//! A few statuses differ between the provider's products; these are the ones its MQTT pages give,
//! or else its common table.

const BAD_REQUEST: u16 = 400;

const CODES: &[(&str, u16, &str)] = &[
    // SendMessage
    ("ApiNotSupport", 404, "The API is not supported by this instance."),
    ("CheckAccountInfoFailed", 400, "An error occurred while checking the account by its token."),
    ("InstancePermissionCheckFailed", 400, "The instance is not yours, or you may not use it."),
    ("InternalError", 500, "An internal error occurred. Please try again later."),
    ("ParameterCheckFailed", 400, "The parameter check failed."),
    ("PermissionCheckFailed", 400, "You may not use this topic, group or instance."),
    (
        "SendMessageFailed",
        500,
        "A storage exception occurred while sending the message. Please try again.",
    ),
    (
        "SystemOverFlow",
        500,
        "The system is overloaded and throttling was triggered. Please try again later.",
    ),
    // throttling
    ("Rejected.Throttling", 400, "Request was denied due to request throttling."),
    ("Throttling", 400, "Request was denied due to request throttling."),
    ("Throttling.Api", 400, "Request was denied due to api flow control."),
    ("Throttling.User", 400, "Request was denied due to user flow control."),
    ("ServiceUnavailable", 503, "The request has failed due to a temporary failure of the server."),
    ("UnknownError", 500, "The request processing has failed due to some unknown error."),
    // signature
    ("IncompleteSignature", 400, "The request signature does not conform to Aliyun standards."),
    ("InvalidSignatureMethod", 400, "Specified signature method is not valid."),
    ("SignatureDoesNotMatch", 400, "Specified signature is not matched with our calculation."),
    ("SignatureNonceUsed", 400, "Specified signature nonce was used already."),
    ("IllegalTimestamp", 400, "The input parameter \"Timestamp\" that is mandatory is not valid."),
    ("InvalidTimeStamp.Expired", 400, "Specified time stamp or date value is expired."),
    ("InvalidTimeStamp.Format", 400, "Specified time stamp or date value is not well formatted."),
    // keys
    (
        "Forbidden.RAM",
        403,
        "User not authorized to operate on the specified resource, or this API doesn't support RAM.",
    ),
    ("InvalidAccessKeyId.Inactive", 400, "Specified access key is disabled."),
    ("InvalidAccessKeyId.NotFound", 404, "Specified access key is not found."),
    ("InvalidSecurityToken.Expired", 400, "Specified SecurityToken is expired."),
    ("InvalidSecurityToken.Malformed", 400, "Specified SecurityToken is malformed."),
    (
        "InvalidSecurityToken.MismatchWithAccessKey",
        400,
        "Specified SecurityToken mismatch with the AccessKey.",
    ),
    ("MissingSecurityToken", 400, "SecurityToken is mandatory for this action."),
    // Security Token Service
    ("AuthenticationFail.OIDCToken.Expired", 400, "This JSON Web Token has expired."),
    ("AuthenticationFail.OIDCToken.Invalid", 400, "This JSON Web Token is invalid."),
    (
        "InvalidParameter.DurationSeconds",
        400,
        "The Min/Max value of DurationSeconds is 15min/12hr.",
    ),
    ("InvalidParameter.OIDCProviderArn", 400, "The parameter OIDCProviderArn is wrongly formed."),
    ("InvalidParameter.PolicyGrammar", 400, "The parameter Policy has not passed grammar check."),
    ("InvalidParameter.RoleArn", 400, "The parameter RoleArn is wrongly formed."),
    ("InvalidParameter.RoleSessionName", 400, "The parameter RoleSessionName is wrongly formed."),
    (
        "NoPermission",
        403,
        "You are not authorized to do this action. You should be authorized by RAM.",
    ),
    // request
    ("InvalidApi.NotFound", 404, "Specified api is not found, please check your url and method."),
    ("InvalidParameter.Format", 400, "The specified parameter \"Format\" is not valid."),
    ("InvalidProtocol.NeedSsl", 404, "Your request is denied as lack of ssl protect."),
    ("MissingParameter", 400, "A parameter that is mandatory for this action is missing."),
    ("UnsupportedHTTPMethod", 400, "This http method is not supported."),
];

/// The status and message of a code. Unknown ones, and `InvalidParameter.*`, are 400.
pub fn status_and_message(code: &str) -> (u16, &'static str) {
    CODES
        .iter()
        .find(|(name, ..)| *name == code)
        .map_or((BAD_REQUEST, "The request was refused."), |&(_, status, message)| {
            (status, message)
        })
}

/// Whether the provider documents it. Of `InvalidParameter.*`, there is one for each parameter.
pub fn is_known_code(code: &str) -> bool {
    CODES.iter().any(|(name, ..)| *name == code)
        || code.strip_prefix("InvalidParameter.").is_some_and(|parameter| !parameter.is_empty())
}

/// Every code, and its status.
pub fn known_codes() -> impl Iterator<Item = (&'static str, u16)> {
    CODES.iter().map(|&(code, status, _)| (code, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_as_documented() {
        assert_eq!(status_and_message("Throttling.User").0, 400);
        assert_eq!(status_and_message("SystemOverFlow").0, 500);
        assert_eq!(status_and_message("ApiNotSupport").0, 404);
        assert_eq!(status_and_message("ServiceUnavailable").0, 503);
        assert_eq!(status_and_message("InvalidParameter.Anything").0, 400);
        assert_eq!(status_and_message("NobodyKnows").0, 400);
    }

    #[test]
    fn no_code_twice() {
        let mut names: Vec<_> = known_codes().map(|(code, _)| code).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
