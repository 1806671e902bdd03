{{- /*
The keys that `config` and `extraEnv` set, as JSON: {"fleet.url": "redis://…"}. From the file's text, because
older Helm does not read TOML. tollgate itself reads the file: this only finds what manifests follow from. The value
of a variable with valueFrom is not known here: it is the text from-a-variable.
*/}}
{{- define "tollgate.settings" -}}
{{- $found := dict }}
{{- $section := "" }}
{{- if not .Values.existingConfigMap }}
{{- range splitList "\n" (.Values.config | default "") }}
{{- $line := trim . }}
{{- if regexMatch `^\[` $line }}
{{- $section = printf "%s." (regexReplaceAll `^\[+\s*([^\]]*?)\s*\].*$` $line "${1}" | replace "\"" "" | replace " " "") }}
{{- else if regexMatch `^[A-Za-z0-9_."' -]+=` $line }}
{{- $key := regexFind `^[^=]+` $line | replace "\"" "" | replace "'" "" | replace " " "" }}
{{- $value := regexReplaceAll `^[^=]+=\s*` $line "" }}
{{- if hasPrefix "{" $value }}
{{- range regexFindAll `[A-Za-z0-9_]+\s*=\s*("[^"]*"|'[^']*'|[^,}]+)` $value -1 }}
{{- $_ := set $found (printf "%s%s.%s" $section $key (regexFind `^[A-Za-z0-9_]+` .)) (regexReplaceAll `^[^=]+=\s*` . "" | trim | trimAll "\"'") }}
{{- end }}
{{- else }}
{{- $_ := set $found (printf "%s%s" $section $key) (regexFind `^("[^"]*"|'[^']*'|[^#]*)` $value | trim | trimAll "\"'") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if hasPrefix "TOLLGATE__" .name }}
{{- $_ := set $found (trimPrefix "TOLLGATE__" .name | lower | replace "__" ".") (ternary "from-a-variable" (.value | default "") (hasKey . "valueFrom")) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* The bytes of a quantity such as 1.5Gi. */}}
{{- define "tollgate.bytes" -}}
{{- $text := . | toString }}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 }}
{{- $unit := regexFind `([KMGTP]i|[kMGTPE])$` $text }}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit | float64) | int64 }}
{{- end }}

{{- /*
spool.max_bytes from spool.size, MiB. A folder takes at most twice its messages, besides 32 MiB of temporary
files and segments, and 96 MiB of the ledger; and a file system keeps 5 % for itself.
*/}}
{{- define "tollgate.maxMiB" -}}
{{- $size := (.Values.spool | default dict).size | default "1Gi" }}
{{- $usable := divf (mulf (include "tollgate.bytes" $size | float64) 0.95) 1048576 | int64 }}
{{- $max := div (sub $usable 128) 2 }}
{{- if lt $max 8 }}{{ fail (printf "spool.size is %v: at least 160Mi, of which 128 MiB are for the ledger and temporary files" $size) }}{{ end }}
{{- min $max 1048576 }}
{{- end }}

{{/* emptyDir, claim or claims. */}}
{{- define "tollgate.volume" -}}
{{ (.Values.spool | default dict).volume | default "emptyDir" }}
{{- end }}

{{- /*
The greatest number of a gateway's pods that send at one moment. On claims a pod ends before its successor starts. On
an emptyDir a rollout counts a pod that ends as gone, while it still delivers: each pod and its successor send.
*/}}
{{- define "tollgate.pods" -}}
{{- mul (.Values.replicas | default 1) (ternary 2 1 (eq (include "tollgate.volume" .) "emptyDir")) }}
{{- end }}

{{/* A duration of the configuration in whole seconds, rounded up; without one the default. */}}
{{- define "tollgate.seconds" -}}
{{- $written := get .settings .key }}
{{- if and $written (not (regexMatch `^([0-9]+ ?(ms|s|m|h) ?)+$` $written)) }}
{{- fail (printf "%s is %q: the chart computes terminationGracePeriodSeconds from it, and reads durations such as 250ms, 5s or 1m 30s" .key $written) }}
{{- end }}
{{- $milliseconds := 0 }}
{{- range regexFindAll `[0-9]+ ?(ms|s|m|h)` $written -1 }}
{{- $milliseconds = add $milliseconds (mul (regexFind `[0-9]+` . | int64) (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) (regexFind `[a-z]+` .))) }}
{{- end }}
{{- ternary (div (add $milliseconds 999) 1000) .otherwise (hasKey .settings .key) }}
{{- end }}

{{/* The seconds from SIGTERM until tollgate has ended. The last call may begin at half of a short drain. */}}
{{- define "tollgate.stopSeconds" -}}
{{- $settings := include "tollgate.settings" . | fromJson }}
{{- $drain := .Values.drainSeconds | default 20 | int }}
{{- $accept := include "tollgate.seconds" (dict "settings" $settings "key" "drain.accept_for" "otherwise" (ternary 5 0 (eq .Values.mode "gateway"))) | int }}
{{- $call := include "tollgate.seconds" (dict "settings" $settings "key" "upstream.call_timeout" "otherwise" 3) | int }}
{{- add $accept $drain (ternary $call 0 (lt $drain (int (mul 2 $call)))) 5 (ternary 10 0 (eq (get $settings "drain.handoff") "true")) }}
{{- end }}

{{/* For terminationGracePeriodSeconds of a pod with a sidecar: the app's own time, and then tollgate's. */}}
{{- define "tollgate.gracePeriod" -}}
{{ add (.Values.appSeconds | default 30) (include "tollgate.stopSeconds" . | int) }}
{{- end }}

{{/* Ports that tollgate connects to, as JSON: 443, those in the configuration's URLs, and networkPolicy.egressPorts. */}}
{{- define "tollgate.egressPorts" -}}
{{- $settings := include "tollgate.settings" . | fromJson }}
{{- $ports := list 443 }}
{{- range (.Values.networkPolicy | default dict).egressPorts }}{{ $ports = append $ports (int .) }}{{ end }}
{{- /* The metadata service of the provider's machines. */}}
{{- if has (include "tollgate.keySource" .) (list "auto" "ecs") }}{{ $ports = append $ports 80 }}{{ end }}
{{- if eq .Values.mode "keyring" }}
{{- range .Values.keyring.issuers }}
{{- $host := urlParse .jwks | dig "host" "" }}
{{- $ports = append $ports (regexFind `[0-9]+$` (regexFind `:[0-9]+$` $host) | default (ternary "80" "443" (hasPrefix "http:" .jwks)) | int) }}
{{- /* A policy holds for the address behind a Service: the API server's own port. */}}
{{- if hasPrefix "kubernetes.default" $host }}{{ $ports = append $ports 6443 }}{{ end }}
{{- end }}
{{- end }}
{{- range $key, $default := dict "upstream.endpoint" 443 "upstream.proxy" 80 "keys.uri" 80 "fleet.url" 6379 }}
{{- $url := get $settings $key }}
{{- if $url }}
{{- if hasPrefix "http:" $url }}{{ $default = 80 }}{{ else if hasPrefix "https:" $url }}{{ $default = 443 }}{{ end }}
{{- /* A Sentinel names the primary, whose port is in no file: 6379 besides. */}}
{{- if contains "+sentinel:" $url }}{{ $ports = append $ports 6379 }}{{ $default = 26379 }}{{ end }}
{{- $hosts := regexReplaceAll `^[a-z0-9+]+://([^@/]*@)?([^/]*).*$` $url "${2}" }}
{{- range splitList "," $hosts }}
{{- $port := regexFind `:[0-9]+$` (trim .) | trimPrefix ":" }}
{{- $ports = append $ports (ternary (int $port) $default (ne $port "")) }}
{{- end }}
{{- end }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{- /*
Variables that the manifests decide, as a list. What the file says of the same keys would have no effect, so it
is refused below.
*/}}
{{- define "tollgate.variables" -}}
{{- if eq .Values.mode "keyring" }}
{{- include "tollgate.keyringVariables" . }}
{{- else }}
{{- $gateway := eq .Values.mode "gateway" }}
{{- $port := (.Values.publish | default dict).port | default 15080 }}
{{- /* [::] is both families, also in a cluster without IPv6. */}}
- { name: TOLLGATE__LISTEN__PUBLISH, value: {{ (.Values.publish | default dict).listen | default (printf "%s:%v" (ternary "[::]" "127.0.0.1" $gateway) $port) | quote }} }
- { name: TOLLGATE__LISTEN__TELEMETRY, value: "[::]:9464" }
- { name: TOLLGATE__SPOOL__PATH, value: /var/lib/tollgate/spool }
{{- /* Of a spool in Redis it is what all pods may store together, and no volume's size. */}}
{{- if eq (get (include "tollgate.settings" . | fromJson) "spool.store" | default "disk") "disk" }}
- { name: TOLLGATE__SPOOL__MAX_BYTES, value: {{ printf "%sMiB" (include "tollgate.maxMiB" .) }} }
{{- end }}
- { name: TOLLGATE__SPOOL__LIFETIME, value: {{ ternary "pod" "volume" (eq (include "tollgate.volume" .) "emptyDir") }} }
- { name: TOLLGATE__DRAIN__GRACE, value: {{ printf "%vs" (.Values.drainSeconds | default 20) }} }
{{- if $gateway }}
{{- /* Nodes route callers to this pod until each has learned that it ends. */}}
- { name: TOLLGATE__DRAIN__ACCEPT_FOR, value: 5s }
{{- end }}
{{- end }}
{{- $theirs := or .Values.existingConfigMap (hasKey (include "tollgate.settings" . | fromJson) "keys.source") }}
{{- if or .Values.secret (.Values.rrsa | default dict).roleArn (not $theirs) }}
- { name: TOLLGATE__KEYS__SOURCE, value: {{ include "tollgate.keySource" . }} }
{{- end }}
{{- if .Values.secret }}
- { name: TOLLGATE__KEYS__PATH, value: /var/run/secrets/tollgate }
{{- end }}
{{- end }}

{{- /*
Where the key comes from: what a value says, or else the configuration, or else the first that is set up, as the
provider's SDKs look for it. Empty: an existingConfigMap decides, which is not seen here.
*/}}
{{- define "tollgate.keySource" -}}
{{- if .Values.secret }}file
{{- else if (.Values.rrsa | default dict).roleArn }}oidc
{{- else }}{{ get (include "tollgate.settings" . | fromJson) "keys.source" | default (empty .Values.existingConfigMap | ternary "auto" "") }}
{{- end }}
{{- end }}

{{/* Pods that do not share their ceilings each have their part of them, unless the configuration says how much. */}}
{{- define "tollgate.parts" -}}
{{- $settings := include "tollgate.settings" . | fromJson }}
{{- if and (eq .Values.mode "gateway") (not .Values.existingConfigMap) (not (get $settings "fleet.url")) }}
{{- $pods := include "tollgate.pods" . | int }}
{{- if gt $pods 300 }}{{ fail (printf "replicas: %d pods that send at once cannot share 300 calls per second: set fleet.url in config" $pods) }}{{ end }}
{{- if and (gt $pods 1) (not (hasKey $settings "ceilings.account")) }}
- { name: TOLLGATE__CEILINGS__ACCOUNT, value: {{ div 1000 $pods | quote }} }
{{- end }}
{{- if and (gt $pods 1) (not (hasKey $settings "ceilings.egress_ip")) (regexMatch `(?i)\.aliyuncs\.com|^from-a-variable$` (get $settings "upstream.endpoint")) }}
- { name: TOLLGATE__CEILINGS__EGRESS_IP, value: {{ div 300 $pods | quote }} }
{{- end }}
{{- end }}
{{- end }}

{{/* Refuses what cannot work and the schema cannot see. */}}
{{- define "tollgate.refuse" -}}
{{- $settings := include "tollgate.settings" . | fromJson }}
{{- $values := dict "listen.publish" "set publish.port or publish.listen" "listen.telemetry" "leave it out: probes and monitors use port 9464"
    "spool.path" "set spool.volume" "spool.max_bytes" "set spool.size" "spool.lifetime" "set spool.volume" "drain.grace" "set drainSeconds"
    "drain.accept_for" "leave it out" "keys.source" "set secret and rrsa.roleArn, or leave both empty" "keys.path" "leave it out"
    "keyring.listen" "leave it out: Service and probes use port 9465" "keyring.certificate" "set keyring.tlsSecret" "keyring.private_key" "set keyring.tlsSecret"
    "keyring.role_arn" "set keyring.roleArn" "keyring.audience" "set keyring.audience" }}
{{- if eq .Values.mode "keyring" }}
{{- range $key, $_ := $settings }}
{{- if regexMatch `^keyring\.(issuers|callers)` $key }}{{ fail (printf "config or extraEnv sets %s, which the values of the chart decide: set keyring.issuers and keyring.callers" $key) }}{{ end }}
{{- end }}
{{- end }}
{{- range include "tollgate.variables" . | fromYamlArray }}
{{- $key := trimPrefix "TOLLGATE__" .name | lower | replace "__" "." }}
{{- if hasKey $settings $key }}
{{- fail (printf "config or extraEnv sets %s, which the values of the chart decide: %s" $key (get $values $key)) }}
{{- end }}
{{- end }}
{{- if and (eq .Values.mode "gateway") .Values.existingConfigMap (not (get $settings "fleet.url")) (gt (include "tollgate.pods" . | int) 1) }}
{{- if not (and (hasKey $settings "ceilings.account") (hasKey $settings "ceilings.egress_ip")) }}
{{- fail (printf "the chart does not see the ceilings in existingConfigMap, and up to %s pods send at once: set TOLLGATE__FLEET__URL in extraEnv, or TOLLGATE__CEILINGS__ACCOUNT and TOLLGATE__CEILINGS__EGRESS_IP to what each pod may send" (include "tollgate.pods" .)) }}
{{- end }}
{{- end }}
{{- if and (eq .Values.mode "gateway") (.Values.autoscaling | default dict).enabled }}
{{- if not (get $settings "fleet.url") }}
{{- fail "autoscaling needs fleet.url in config or TOLLGATE__FLEET__URL in extraEnv: pods that share nothing cannot keep to the account's ceiling while their number changes" }}
{{- end }}
{{- if not .Values.autoscaling.metrics }}
{{- fail "autoscaling.metrics is empty: say what to scale by, such as memory; more pods let no more calls through, since all share the ceilings" }}
{{- end }}
{{- if gt (int (.Values.autoscaling.minReplicas | default 2)) (int (.Values.autoscaling.maxReplicas | default 4)) }}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" }}
{{- end }}
{{- end }}
{{- if and (eq (get $settings "drain.handoff") "true") (not (get $settings "fleet.url")) }}
{{- fail "drain.handoff needs fleet.url in config or TOLLGATE__FLEET__URL in extraEnv: the Redis that takes the messages" }}
{{- end }}
{{- end }}
