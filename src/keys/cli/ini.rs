//! Profiles of the SDKs' ini file: sections with `name = value`, and `#` before a comment.

use secrecy::SecretString;

use super::{Profile, ProfileRole};

/// The section of this name, or `default`; or what is wrong, without anything of the file's values.
pub(super) fn profile(text: &str, name: Option<&str>) -> Result<Profile, String> {
    let name = name.unwrap_or("default");
    let section = Section::find(text, name);
    let shown = name.escape_debug();
    let section = section.ok_or_else(|| format!("has no section [{shown}]"))?;
    section.profile().map_err(|what| format!("section [{shown}]: {what}"))
}

/// The lines of one section.
struct Section<'a>(Vec<&'a str>);

impl<'a> Section<'a> {
    fn find(text: &'a str, name: &str) -> Option<Self> {
        let header =
            |line: &str| Some(line.strip_prefix('[')?.split_once(']')?.0.trim().to_owned());
        let mut lines = text.lines().map(str::trim);
        lines.by_ref().find(|line| header(line).as_deref() == Some(name))?;
        Some(Self(lines.take_while(|line| header(line).is_none()).collect()))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        let value = self.0.iter().find_map(|line| {
            let (key, value) = line.split_once(['=', ':'])?;
            (key.trim() == name).then(|| value.split('#').next().unwrap_or_default().trim())
        });
        value.filter(|value| !value.is_empty())
    }

    fn needed(&self, name: &str) -> Result<String, String> {
        self.get(name).map(str::to_owned).ok_or_else(|| format!("has no {name}"))
    }

    fn profile(&self) -> Result<Profile, String> {
        match self.get("type").unwrap_or_default() {
            "access_key" => self.lasting(),
            "sts" => {
                let token = SecretString::from(self.needed("security_token")?);
                match self.lasting()? {
                    Profile::Lasting { id, secret, .. } => {
                        Ok(Profile::Lasting { id, secret, token: Some(token) })
                    }
                    other => Ok(other),
                }
            }
            "ecs_ram_role" => {
                Ok(Profile::Machine { role: self.get("role_name").map(str::to_owned) })
            }
            "ram_role_arn" => {
                Ok(Profile::Role { base: Box::new(self.lasting()?), role: self.role()? })
            }
            "oidc_role_arn" => Ok(Profile::Oidc {
                provider_arn: self.needed("oidc_provider_arn")?,
                token_file: self.needed("oidc_token_file_path")?.into(),
                role: self.role()?,
            }),
            kind => Err(format!(
                "has the type \"{}\"; tollgate knows access_key, sts, ram_role_arn, oidc_role_arn and \
                 ecs_ram_role",
                kind.escape_debug()
            )),
        }
    }

    fn lasting(&self) -> Result<Profile, String> {
        Ok(Profile::Lasting {
            id: self.needed("access_key_id")?,
            secret: SecretString::from(self.needed("access_key_secret")?),
            token: None,
        })
    }

    fn role(&self) -> Result<ProfileRole, String> {
        Ok(ProfileRole {
            arn: self.needed("role_arn")?,
            name: self.get("role_session_name").map(str::to_owned),
            seconds: None,
            policy: self.get("policy").map(str::to_owned),
            external_id: self.get("external_id").map(str::to_owned),
            sts_region: None,
            vpc: false,
        })
    }
}
